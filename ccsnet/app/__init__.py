"""The page: a trained model to try in the browser, on this machine only."""
