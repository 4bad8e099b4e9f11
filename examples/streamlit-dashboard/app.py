"""A dashboard over made-up visits. Try it here first: `pip install streamlit && streamlit run app.py`."""

import numpy as np
import pandas as pd
import streamlit as st

st.set_page_config(page_title="Dashboard", page_icon="📈", layout="wide")


@st.cache_data  # computed once, then the same for every visitor
def visits(seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    days = pd.date_range(end=pd.Timestamp.today().normalize(), periods=90)
    apps = {"gradio": 120, "streamlit": 80, "static": 40}
    walks = {name: base + random.normal(0, 6, len(days)).cumsum() for name, base in apps.items()}
    return pd.DataFrame(walks, index=days).clip(lower=0).round()


st.title("📈 Visits")

with st.sidebar:
    st.header("Show")
    last = st.slider("Days", 7, 90, 30)
    chosen = st.multiselect("Kinds of app", ["gradio", "streamlit", "static"], default=["gradio", "streamlit"])

data = visits(seed=7).tail(last)[chosen]

if not chosen:
    st.info("Choose at least one kind of app on the left.")
    st.stop()

for column, name in zip(st.columns(len(chosen)), chosen, strict=True):
    change = data[name].iloc[-1] - data[name].iloc[0]
    column.metric(name.capitalize(), f"{data[name].iloc[-1]:.0f} today", f"{change:+.0f} in {last} days")

st.line_chart(data)

with st.expander("The numbers"):
    st.dataframe(data, width="stretch")
    st.download_button("Download as CSV", data.to_csv(), file_name="visits.csv", mime="text/csv")
