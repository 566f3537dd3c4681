"""The provider ``openai``: OpenAI, and any server with the same chat-completions API."""

from .model import OpenAIModel as OpenAIModel
from .model import openai_model as openai_model
from .settings import DEFAULT_BASE_URL as DEFAULT_BASE_URL
from .settings import DEFAULT_MODEL as DEFAULT_MODEL
from .settings import OpenAISettings as OpenAISettings
from .settings import proxy_for as proxy_for
from .settings import read_settings as read_settings

__all__ = [
    "DEFAULT_BASE_URL",
    "DEFAULT_MODEL",
    "OpenAIModel",
    "OpenAISettings",
    "openai_model",
    "proxy_for",
    "read_settings",
]
