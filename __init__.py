"""WAN 2.2 Animate as an app: a raw driving video and one reference image in, an MP4 out."""

from .inference import App, AppInput, AppOutput, AppSetup, PreviewInput, PreviewOutput

__all__ = ["App", "AppInput", "AppOutput", "AppSetup", "PreviewInput", "PreviewOutput"]
