"""Which labels a run learns from: matched, chosen, bought, and apart from what it is measured on."""
