"""What our widgets share: each says so when its kernel was restarted.

JupyterLab marks the widgets of a kernel that it restarts with a class, and leaves them on the page as they were. A style that
comes with the widget turns that mark into words.
"""

from __future__ import annotations

import ipywidgets

CLASS = "moebius-widget"
GONE = "The kernel was restarted: this widget is no longer connected to it. Run its cell again."
STYLE = f"""
.{CLASS}.jupyter-widgets-disconnected::before {{
  content: "{GONE}"; display: block; padding: 0.4em 0; color: var(--jp-error-color1, #b00020);
}}
.{CLASS}.jupyter-widgets-disconnected > * {{ opacity: 0.4; pointer-events: none; }}
"""


def style_of(widget: ipywidgets.DOMWidget) -> ipywidgets.HTML:
    """A child for `widget` that lets it say that its kernel was restarted; nothing is seen of it before."""
    widget.add_class(CLASS)
    return ipywidgets.HTML(f"<style>{STYLE}</style>", layout={"display": "none"})
