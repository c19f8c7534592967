"""What the docstrings of verbs share: the words of a record, and the arguments that every long call has."""

from __future__ import annotations

from textwrap import indent

from ..core.shared_docs import shares

_WORDS = """\
- dynamics : Dynamics: the forecast model, where the attributes name none that is registered;
- truth, observation : str, or mapping of fields' names to str: names of the variables, where their attributes and
  names do not say the role. Fields that the mapping `observation` leaves out are not observed;
- observation_error : str, float, array, or mapping of fields' names to these: a variable's name, standard deviations
  (one number, or one for each observation), or R as a matrix; or a mapping of the names in the observations'
  coordinate `instrument` to the deviations of the instruments;
- operator : str, array, callable, or mapping of fields' names to matrices (P, *shape): H, where observations lie
  along `obs`: a variable's name, a matrix (P, N), or a torch function of states (..., N), of several fields of a
  mapping of tensors (..., *shape). No store can hold a function;
- positions : mapping of str to array: where observations along `obs` lie, such as {"x": [0.5, 7.25]}, where they
  have no coordinates that say it;
- model_error : str, float, array, or mapping of fields' names to these: Q, the covariance of the model's errors in one
  interval, as standard deviations, a matrix, or a variable's name. 0 is a perfect model. By default what the
  dynamics has, or else the Dataset;
- climatology : array, DataArray or "record": states (sample, *state) that stand for the dynamics' own climatology,
  where the model is expensive or does not spin up from noise. Methods start from these states, and take the mean and
  B of them; "record" takes at most 4096 states of the truth. The attributes of a run hold a digest of them."""

PARAGRAPHS = {
    "record_words": _WORDS,
    "words": "**words\n    What the Dataset does not say of itself. Each word may be left out, or None.\n\n"
    + indent(_WORDS, "    "),
    "ds": """\
ds : xarray.Dataset
    A twin or a record: observations (trajectory, time, *state), NaN where nothing is observed, or (trajectory, time,
    obs) with an operator or positions. The dim `trajectory` may be missing. Chunked input gives lazy output.""",
    "scored": """\
ds : xarray.Dataset
    The twin or the record that was cycled.""",
    "averaged": """\
dim : str or sequence of str
    Dims to average over, of `trajectory` and `time`.""",
    "burn_in": """\
burn_in : int
    Leading cycles to leave out.""",
    "restart_after": """\
restart_after : float, optional
    Model time without an observation after which a trajectory starts anew from the climatology, with the next
    observation; by default never. The run holds the flag `restarted`, and the time in its attributes. 4D-Var and
    smoothers, which fit several times together, start anew after intervals of the record that are longer.""",
    "store": """\
store : path or Zarr store, optional
    Stream the result into this store block by block, and return it opened. The same call resumes a killed one.""",
    "mode": """\
mode : {"w-", "w"}
    "w" overwrites an existing store. An unfinished run of the same call is taken up in both modes.""",
    "device": """\
device : str
    Where tensors are: "cpu", "cuda", ...; "auto" takes the GPU where there is one.""",
    "progress": """\
progress : bool
    Show a progress bar while the call computes, once that takes long. A lazy result is not computed and shows none;
    `dask.diagnostics.ProgressBar` shows one when it is computed.""",
}

shares_words = shares(PARAGRAPHS)
