"""Parts that the docstrings of verbs share: the words of a record, and the arguments of every long call."""

from __future__ import annotations

from textwrap import indent

from ..core.shared_docs import shares

_WORDS = """\
- dynamics : Dynamics: the forecast model. By default the attribute `dynamics` of the Dataset names a registered one;
- truth, observation : str, or mapping of fields' names to str: names of the variables. By default attributes and
  names of variables tell their roles. Fields that the mapping `observation` leaves out are not observed;
- observation_error : str, float, array, or mapping of fields' names to these: the name of a variable, standard
  deviations (one number, or one for each observation, in the observations' units), or R as a matrix. A mapping may
  also hold the standard deviation of each instrument, which the observations' coordinate `instrument` names;
- operator : str, array, callable, or mapping of fields' names to matrices (P, *shape): H, for observations along
  `obs`: the name of a variable, a matrix (P, N), or a torch function of states (..., N). For several fields the
  function takes a mapping of tensors (..., *shape). No store can hold a function;
- positions : mapping of str to array: places of the observations along `obs`, such as {"x": [0.5, 7.25]}. By default
  the observations' coordinates tell them;
- model_error : str, float, array, or mapping of fields' names to these: Q, the covariance of the model's errors in one
  interval, as standard deviations, a matrix, or the name of a variable. 0 says that the model is perfect. By default
  the Q of the dynamics, or else that of the Dataset;
- climatology : array, DataArray or "record": states (sample, *state) in the place of the dynamics' climatology, for a
  model that is expensive or does not spin up from noise. Methods start from these states and compute the mean and B
  from them. "record" takes at most 4096 states of the truth. The attributes of a run hold a digest of the states."""

PARAGRAPHS = {
    "record_words": _WORDS,
    "words": "**words\n    What the Dataset's attributes and names do not say. Each word may be left out, or None.\n\n"
    + indent(_WORDS, "    "),
    "ds": """\
ds : xarray.Dataset
    A twin or a record. Its observations have the dims (trajectory, time, *state), with NaN for what is not observed;
    with an operator or positions they have the dims (trajectory, time, obs). The dim `trajectory` may be missing.
    Chunked input gives lazy output.""",
    "scored": """\
ds : xarray.Dataset
    The twin or the record on which the run was made.""",
    "averaged": """\
dim : str or sequence of str
    Dims to average over: `trajectory`, `time` or both.""",
    "burn_in": """\
burn_in : int
    Number of cycles to leave out at the beginning.""",
    "restart_after": """\
restart_after : float, timedelta or str, optional
    A time, in model time. With the dynamics' `time_unit` it may be a time difference, or words such as "3D". After a
    longer time without an observation, a trajectory starts anew from the climatology
    at the next observation. By default this never happens. The run holds the flag `restarted`, and its attributes hold
    the time. 4D-Var and smoothers fit several times together: they start anew after each longer interval of the
    record.""",
    "store": """\
store : path or Zarr store, optional
    Write the result into this store block by block, and return the opened store. After a kill, the same call goes on
    from the last block. By default the result is in memory, or lazy if `ds` is lazy.""",
    "mode": """\
mode : {"w-", "w"}
    "w-" refuses a store that exists, "w" overwrites it. An unfinished run of the same call goes on in both modes.""",
    "device": """\
device : str
    Device of the tensors: "cpu", "cuda", "cuda:0" and so on. "auto" takes the GPU if there is one.""",
    "progress": """\
progress : bool
    Whether to show a progress bar while the call computes. The bar appears after some seconds. A lazy result is not
    computed, and has no bar; `dask.diagnostics.ProgressBar` shows one when you compute the result.""",
}

shares_words = shares(PARAGRAPHS)
