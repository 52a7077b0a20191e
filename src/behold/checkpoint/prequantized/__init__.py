"""Checkpoints that arrive quantized by other programs: their layouts, decoded one weight at a time.

options.py reads settings, layout.py finds the parts of each weight, scales.py multiplies; one file for each format.
"""
