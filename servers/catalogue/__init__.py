"""What compression methods there are: their options, their claims, what they keep."""
