"""Field-of-view arithmetic for sequences of layers, and for any network by tracing one forward pass."""

from dnas.receptive_field.arithmetic import Field, Layer, field_of_layers
from dnas.receptive_field.view import DeclaresLayer, dilation_bounds, field_of_outputs, fields_around

__all__ = ["DeclaresLayer", "Field", "Layer", "dilation_bounds", "field_of_layers", "field_of_outputs", "fields_around"]
