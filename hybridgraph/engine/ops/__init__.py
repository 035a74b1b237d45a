"""The dynamic operations: what differs from request to request and stays outside the captured graphs."""
