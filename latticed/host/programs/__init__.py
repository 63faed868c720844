"""Long-lived programs of the host's own that plugins declare and we keep running, confined (service.*, tunnel.*).

This room knows when to start one again and when not to. What a program is for is the business of who declares it; which
programs there are is the operator's.
"""
