"""Tokens coloured by any score: in a terminal (`terminal`) and as a piece of HTML (`html`)."""
