"""The switch that makes a stock Hugging Face model a block-diffusion one; no model code is copied."""

from bard_core.models.vlm import BardSettings, bard_settings, load, record_settings

__all__ = ["BardSettings", "bard_settings", "load", "record_settings"]
