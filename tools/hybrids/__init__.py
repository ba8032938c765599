"""Recurrent models of real shape and random weights beside transformers: agreement, time, memory and drift."""
