"""Where training data come from: procedural mattes or folders, kept as patches, composed into batches on the device."""
