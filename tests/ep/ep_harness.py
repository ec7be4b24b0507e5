"""Sessions with the execution provider in front, and which nodes ran in it."""
import onnxruntime as ort

import harness

NAME = "KvshareExecutionProvider"
REGISTERED = "kvshare"
ALL_OPTIMIZATION = ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def register(name=REGISTERED):
    """Registers the library once a process and name."""
    if name not in register.names:
        ort.register_execution_provider_library(name, harness.ORT_LIB)
        register.names.add(name)


register.names = set()


def devices():
    register()
    return [d for d in ort.get_ep_devices() if d.ep_name == NAME][:1]


def session(model, entries=(), threads=2, optimization=ALL_OPTIMIZATION, execution_mode=None, log_severity=3, **provider_options):
    """`model`: bytes or a path; `provider_options`: mode, causal_alignment; `entries`: session entries."""
    options = ort.SessionOptions()
    options.log_severity_level = log_severity
    options.intra_op_num_threads = threads
    options.graph_optimization_level = optimization
    if execution_mode is not None:
        options.execution_mode = execution_mode
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for key, value in dict(entries).items():
        options.add_session_config_entry(key, value)
    options.add_provider_for_devices(devices(), provider_options)
    return ort.InferenceSession(model, options)


def assigned(sess, provider=NAME):
    """(domain, op) of the nodes that `provider` runs, from ONNX Runtime's own account."""
    return [(node.domain, node.op_type) for part in sess.get_provider_graph_assignment_info() if part.ep_name == provider
            for node in part.get_nodes()]


def attention_elsewhere(sess):
    """Attention nodes that another provider runs."""
    return [node for part in sess.get_provider_graph_assignment_info() if part.ep_name != NAME
            for node in ((n.domain, n.op_type) for n in part.get_nodes()) if node[1] in ("Attention", "GroupQueryAttention")]
