"""From one photo and its trimap to alpha and cut-out."""

from .matter import Matter as Matter
