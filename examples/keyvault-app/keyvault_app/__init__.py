"""The walk-through's sample application: shows one secret of an Azure Key Vault, and holds no credential."""
