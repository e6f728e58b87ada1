"""Containers, built from system calls, with the kernel as the proof."""
