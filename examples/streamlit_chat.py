"""Chat in a browser with Streamlit, on glmkit's Python API.

pip install streamlit, then: streamlit run examples/streamlit_chat.py
"""

import streamlit as st

import glmkit
from glmkit import Chat, GenerationOptions
from glmkit.live import Live

st.set_page_config(page_title="glmkit", page_icon="💬")
st.title("glmkit")


@st.cache_resource  # one model for all visitors, loaded once
def load(name: str) -> Live:
    return Live(glmkit.load(name))


with st.sidebar:
    model = st.text_input("Model", "default")
    max_tokens = st.slider("Longest answer", 16, 4096, 512)
    temperature = st.slider("Temperature", 0.0, 2.0, 0.7)
    top_p = st.slider("Top-p", 0.05, 1.0, 0.9)
    if st.button("Clear", width="stretch"):
        st.session_state.pop("history", None)

chat = Chat(load(model), options=GenerationOptions(max_tokens, temperature, top_p))
chat.history = st.session_state.setdefault("history", [])
for message in chat.history:
    st.chat_message(message.role).write(message.content)

if question := st.chat_input("Your message"):
    st.chat_message("user").write(question)
    with st.chat_message("assistant"):
        st.write_stream(chunk.text for chunk in chat.stream(question))
