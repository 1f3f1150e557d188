"""The demo: one page in the browser that answers for an image, and an address that answers for
programs.
"""
