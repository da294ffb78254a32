"""Processes that run what a model wrote: limited, killable, and told nothing they need not know.

A `Sandbox` (`sandbox`) starts them. A `Confined` process (`process`) has an empty working directory
and next to no environment; it answers one JSON line with another on a private socket. Its standard
input and output are files of ours, so what it prints is read without its help. What it is made of
itself lies in `inside`, and is imported through this file: nothing is imported here.
"""
