"""A wave to play with. Try it here first: `pip install dash && python app.py`."""

import math

from dash import Dash, Input, Output, callback, dcc, html

app = Dash(__name__, title="Dash hello")
server = app.server  # the Flask application underneath, for those who want to add routes

app.layout = html.Main(
    [
        html.H1("A wave 🎛️"),
        html.Label("How fast?", htmlFor="speed"),
        dcc.Slider(1, 10, 1, value=3, id="speed"),
        html.Label("How high?", htmlFor="height"),
        dcc.Slider(0, 5, 0.5, value=2, id="height"),
        dcc.Graph(id="wave"),
    ],
    style={"maxWidth": "50rem", "margin": "auto", "fontFamily": "system-ui"},
)


@callback(Output("wave", "figure"), Input("speed", "value"), Input("height", "value"))
def draw(speed: float, height: float) -> dict:
    """Runs in the beginning and whenever a slider moves."""
    xs = [n / 50 for n in range(315)]
    ys = [height * math.sin(speed * x) for x in xs]
    return {
        "data": [{"x": xs, "y": ys, "type": "scatter", "line": {"shape": "spline", "width": 3}}],
        "layout": {"yaxis": {"range": [-5.5, 5.5]}, "margin": {"t": 20}},
    }


if __name__ == "__main__":
    app.run()
