"""How the parts of a chat window look."""

import panel as pn
from PIL import Image

from e2e_lib.data.dialogue import Turn
from e2e_lib.window import saved

# A message's usual icons come from a font of another site.
_NO_ICON = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"></svg>'
_COLOURS = ("#eeeeee", "#d6ecfa")  # of what you say, and of what the partner says
_MESSAGE = """\
:host(.chat-message) { margin-top: 2px }
.left { height: 78px !important; min-height: 78px !important }
.center, .message { min-height: 0 }
.message { padding: 6px 14px; border-radius: 14px; box-shadow: none; color: #111111; background: %s }
.icons { display: none }
"""
_SAMPLE = """\
.bk-btn { width: 64px; height: 64px; padding: 0; font-size: 0; border-radius: 8px; border: 1px solid #767676;
  background: url(data:image/png;base64,%s) center/cover; image-rendering: pixelated }
.bk-btn:focus-visible { outline: 3px solid #1261a8 }
"""


def message(turn: Turn, photo_of: saved.PhotoOf) -> pn.chat.ChatMessage:
    """A turn as it stands in the window."""
    # What scrolls must hold something that the keyboard reaches.
    body = pn.pane.HTML(f'<article tabindex="0">{saved.turn_html(turn, photo_of)}</article>')
    shown = pn.chat.ChatMessage(body, user=saved.NAMES[turn.speaker], show_timestamp=False,
                                show_edit_icon=False, show_copy_icon=False, reaction_icons={},
                                stylesheets=[_MESSAGE % _COLOURS[turn.speaker]])
    shown.edit_icon.icon = shown.edit_icon.active_icon = _NO_ICON
    return shown


def photo_button(name: str, photo: Image.Image) -> pn.widgets.Button:
    """A button that shows a photo; its name is for screen readers, and beside the pointer."""
    return pn.widgets.Button(label=name, description=name, stylesheets=[_SAMPLE % saved.base64_png(photo)],
                             width=64, height=64, margin=(0, 4))
