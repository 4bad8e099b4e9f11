"""Says hello. Try it here first: `pip install gradio && python app.py`."""

import gradio as gr


def greet(name: str, warmth: int) -> str:
    return f"Hello, {name or 'world'}" + "!" * warmth


# Each input becomes one argument of greet(); what it returns is shown on the right.
demo = gr.Interface(
    fn=greet,
    inputs=[
        gr.Textbox(label="Your name", placeholder="Ada"),
        gr.Slider(1, 5, value=1, step=1, label="How warmly?"),
    ],
    outputs=gr.Textbox(label="Greeting"),
    title="Hello 👋",
    description="Type a name, press Submit.",
    examples=[["Ada", 1], ["Grace", 3]],
    api_name="greet",  # also callable by programs: gradio_client.Client(url).predict("Ada", 2, api_name="/greet")
)

if __name__ == "__main__":
    demo.launch()  # the platform says on which address and port, through environment variables
