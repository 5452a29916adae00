"""Packs in remote stores."""
