"""The doctor's checks: each function returns findings and changes nothing."""
