"""Reports that compare runs."""

from pathlib import Path

STYLE = Path(__file__).with_name("style.css")  # shared with the app and the playable page
