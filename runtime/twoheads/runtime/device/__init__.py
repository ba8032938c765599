"""The block program on a device with memory of its own: values stay there, calls are queued on streams."""
