"""What this computer can do: hardware, GPUs, fit, serverless, connectivity."""
