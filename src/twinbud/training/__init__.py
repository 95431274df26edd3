"""How S is trained while S′, its moving average, gives it soft targets."""
