"""The bridge between a language model and a text encoder with another vocabulary (sections 2.4.1-2.4.2)."""

from e2e_lib.bridge.caption_bridge import BridgeOutput, CaptionBridge

__all__ = ["BridgeOutput", "CaptionBridge"]
