"""Preparation of public data sets from their archives, as downloaded."""
