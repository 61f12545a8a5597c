"""What only YumeStreet needs: towns, walks, episodes, phrasings and what its scene prior is fitted to."""
