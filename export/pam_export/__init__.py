"""From a supernet and its paths to artifacts for phones, each proved equal to the PyTorch network.

export_folder(supernet, [BudgetPath(budget, path)], targets=["executorch"], sizes=[512], out=folder, model={...})
verify_folder(folder)
"""

from .folder import BudgetPath as BudgetPath
from .folder import export_folder as export_folder
from .recipe import RECIPES as RECIPES
from .verify import Check as Check
from .verify import verify_folder as verify_folder
