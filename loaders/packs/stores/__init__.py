"""Access to remote stores, and packs in them."""
