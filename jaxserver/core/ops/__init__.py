"""The pieces a transformer is made of, in forms whose bits do not depend on company."""
