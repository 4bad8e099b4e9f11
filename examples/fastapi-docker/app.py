"""A small web API: `/` says hello, `/docs` shows all there is to call."""

from fastapi import FastAPI

app = FastAPI(title="Hello from a container")


@app.get("/")
def hello(name: str = "world") -> dict[str, str]:
    return {"hello": name}
