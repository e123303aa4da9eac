"""Pretrained weights, in and out, and adapters to train them with."""
