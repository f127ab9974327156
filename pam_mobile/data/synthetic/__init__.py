"""Seeded procedural mattes and backgrounds: training material that needs no licence."""

from pam_mobile.data.synthetic.backgrounds import make_background as make_background
from pam_mobile.data.synthetic.layers import known_shares as known_shares
from pam_mobile.data.synthetic.matte import KINDS as KINDS
from pam_mobile.data.synthetic.matte import PARTIAL_SHARE as PARTIAL_SHARE
from pam_mobile.data.synthetic.matte import WEIGHTS as WEIGHTS
from pam_mobile.data.synthetic.matte import Matte as Matte
from pam_mobile.data.synthetic.matte import make_matte as make_matte
from pam_mobile.data.synthetic.raster import SMALLEST as SMALLEST
