"""Tasks that ship with Grapevine. `task.BUILT_IN` names them."""
