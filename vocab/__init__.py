"""What may be prescribed and what may not go together: labels, generics, ingredients, ATC codes, matching, conflicts."""
