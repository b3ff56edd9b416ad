"""The app: generate images in the browser, with gradio (the extra ``app``)."""
