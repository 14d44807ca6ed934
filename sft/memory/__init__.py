"""What a training run needs of a card: the prediction, and its check against measured peaks."""
