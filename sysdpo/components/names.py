"""Names that a component may have: each is a part of a module's path and the folder of its weights."""

from sysdpo.errors import SettingError, check_file_name

MEANT_BY_TORCH = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double
    dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items
    keys load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory smart_apply state_dict
    to to_empty train training type update values xpu zero_grad
    """.split()  # noqa: SIM905
)
"""What a `ModuleDict` has under names without an underscore in front; written down, so that a config is checked
without loading torch."""


def check_component_name(name: str) -> None:
    """Refuse a name that could be no part of a module or no folder of its weights."""
    check_file_name("components", name)
    if "." in name or name.startswith("_") or name in MEANT_BY_TORCH:
        better = name.strip("._").replace(".", "_") if not name[0].isalpha() or "." in name else f"{name}_model"
        raise SettingError(
            f"components: {name!r} cannot name a component (it has a dot, begins with an underscore, or means "
            f"something to torch); write {better or 'model'!r}."
        )
