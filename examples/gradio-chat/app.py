"""A chat that answers word by word."""

import re
import time
from collections.abc import Iterator

import gradio as gr

# The oldest trick of chat programs (ELIZA, 1966): turn the statement into a question.
TURNED = {"i": "you", "me": "you", "my": "your", "am": "are", "you": "I", "your": "my"}


def reply(message: str) -> str:
    words = re.findall(r"[\w']+", message.lower())
    if not words:
        return "Tell me more."
    if message.strip().endswith("?"):
        return "What do you think yourself? I am only forty lines of Python."
    turned = " ".join(TURNED.get(word, word) for word in words)
    return f"Why do you say that {turned}?"


def chat(message: str, history: list) -> Iterator[str]:
    """A generator streams: every `yield` replaces the answer shown so far."""
    said = ""
    for word in reply(message).split(" "):
        said += word + " "
        time.sleep(0.05)  # a real model takes its time, too
        yield said.strip()


demo = gr.ChatInterface(
    fn=chat,
    title="Chat 💬",
    description="It listens, and asks back.",
    examples=["I am learning to build apps", "My model is finally training", "Who are you?"],
)

if __name__ == "__main__":
    demo.launch()
