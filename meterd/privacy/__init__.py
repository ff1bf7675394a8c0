"""Pure: how personal data is kept from everybody but whom it belongs to."""
