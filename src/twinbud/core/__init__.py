"""What every package uses: errors, files, the cache folder, random streams, memory, progress, signals."""
