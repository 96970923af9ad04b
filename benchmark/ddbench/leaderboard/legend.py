"""The words of the page that no record changes."""

from __future__ import annotations

LEGEND = """\
## How to read this page

- Tables compare only what may be compared: one evaluation protocol, one data set (by the hash of its contents; a
  changed copy is another data set), one kind of labels, one number of images per class (IPC), one budget.
- **hard labels** are classes, **learned labels** probabilities that were distilled with the images, **stored soft
  labels** probabilities that a teacher, a network trained on the real training images, gave the finished images once.
  **Soft labels (teacher)**: the protocol's own teacher labels every augmented batch, and the set's labels do not count.
  Such accuracies compare with none of another kind of labels. **soft labels of a file** came with an imported set.
- A **set** is what was distilled, selected, sampled or imported; a **judgement** is one network trained on it under one
  protocol, some times over. A row joins the sets of one plan, one a seed, with their judgements.
- **Accuracy** is the share of the official test images that a network classifies rightly after training from
  scratch on the distilled set, in percent. It is read once, after the last epoch; no checkpoint is picked by it. Where
  published code does otherwise, a section that is not ranked measures what that is worth.
- **same arch.** is the network that also distilled (the backbone). **cross-arch. mean** is the unweighted mean over
  all other networks, the backbone excluded. Baselines and imported sets have no backbone: they are read by that of the
  distilled rows beside them, once for each where there are several; where there is none, **mean over networks** is over all.
- **(2 of 4 networks)** stands behind a mean that is taken over fewer networks than others of its table, **(1 of 2 seeds)**
  behind the accuracy on a network that has not judged every seed; a line below the table says which seeds it lacks and why: the
  network's training diverged, or failed otherwise (as the store's records of failures say), or nobody has recorded it.
- **61.2 ± 0.8** is the mean over distillation seeds, after the networks of each seed have been averaged, and the
  standard deviation of the seeds' means (ddof 1).
- **{one_seed}** marks rows of one distillation seed (full-data distils nothing and always has one). There the ± is
  the standard deviation over the networks of that seed (ddof 1); it says nothing about another seed.
- **Uncertainty** takes it apart, in points of accuracy: the half-width of the mean's 95 % t-interval over seeds (with
  two seeds the t quantile is 12.7, so such an interval is wide: run more seeds) / the standard deviation over the
  networks of one seed (ddof 1, mean over seeds; for the cross-arch. mean also the mean over networks) / the standard
  error sqrt(p (1 - p) / n) left by having only n test images. The last one is common to all rows of a table, which see
  the same test images; neither more seeds nor more networks shrink it.
- **saw** is what has a part in a set and learned from something: the generator, the networks that rank candidates, teachers and
  experts, the images that a loss matches or a baseline picks. **training images** are the subset's own; **external images** and
  **external labels** are others', such as ImageNet's; **test images?** stands where the images that sets are judged on may have
  been among these; **unknown** where nobody has said, as of imported sets. Where all rows of a table saw the same, the line above
  it says it.
- **Bold** is the highest mean of its column among the rows of a table that saw the same, where there are two or more. Rows of
  unknown knowledge, full-data, and means over fewer networks or seeds than others have do not compete. It says nothing of luck:
  for that look at the ± and the intervals.
- **KiB** is what a set is delivered in, the table **Size** takes it apart: the smaller of its stored tensors **with decoder**
  (networks that its images share, and the weights of the generator that decodes them) and its images **rendered**, four bytes a
  value for real and synthetic images alike; **stored** leaves the decoder out, and {unknown} is what a record does not say. With
  the budget *images* IPC counts items as the papers do; with *bytes* every set is delivered in what IPC rendered images take, so
  one whose stored form is smaller holds more images; no table mixes the two. **floats optimised** are those of the stage that was
  chosen, without labels.
- **peak MiB** on a CPU is the resident memory of the whole process that
  made the set, Python and torch included; on a GPU, what was allocated there.
- **s to distil** is distillation and ranking of candidates, mean over seeds. **resources s** is what the row's
  shared resources (generators, proxies) took to build, once for all rows that share them; **evaluate s** is what
  judging took.
- **/ {reference}** divides **distill + rank s** by that of the space `{reference}` with the same loss in the same
  table, only where all sets of both rows were made on equal hardware. Look at the steps too: they are part of the price.
- **Cost of judging** is what one distilled set took to be judged, a mean over the sets of a section that were judged
  on equal hardware, full-data apart. **s to train** and **s to test** are of all repeats of a network together. **images/s** are
  training images, counted once an epoch. **GFLOP per image** are the operations of convolutions and matrix products in
  one training step on one image, forward and backward. **% of peak** is the product of these two over the peak: the best
  float32 matrix product, measured on that device with that number of threads. **peak MiB** is the largest. **way**:
  serial trains the repeats one after the other, captured likewise by recorded steps, streams side by side by such, stacked all
  at once.
- **{mixed}** marks rows that mix circumstances: seeds made on, or networks judged on, different hardware (the model of the
  processor and the instruction set that torch uses count), different Pythons, or different sources of one plugin, by the
  first digits of their hashes. A line below the table says which. **{marked}** marks rows with something else that a reader
  must know; the line below the table says it.
- **[protocol X]** behind full-data says that it was asked for under X, whose recipe for distilled sets differs in epochs alone.
- **[draw 5]** marks rows whose judgements drew other random numbers than those of the other rows of that seed.
- **random** trains on real images drawn at random, IPC of each class; **full-data** on all real training images;
  **imported** sets came from a file, which the digits behind the word name by its SHA-256.
- Rows of equal name differ in the settings in square brackets. The linked plan of a set holds every setting.
"""

UNTUNED = """\
## Rates not tuned (not ranked)

Rows whose learning rates were not chosen by trials, or by fewer than those of the other rows of their table above: what they
lack may be no more than a better rate. `ddbench tune SUITE` chooses rates.
"""

TUNING = """\
- **tuning**: how the learning rates of a row were chosen. A trial distils a set at one point of a grid of rates, from random
  streams that no row of a board draws from, and is scored by networks on training images that nothing of the trial has trained
  on; the smallest mean error wins. The table **Tuning** has the rates of every trial, with its error, the ± over all networks
  that scored it, and its seconds; **own** are the rates that the method has of itself. The column's seconds are those of all
  trials together, scoring included; **s to distil** does not hold them. A table in which rows are tuned ranks those that are, by
  equally many trials; baselines have nothing to tune.
"""

TRAJECTORY = """\
## On the way (not ranked)

Iterates of distillations that were kept and judged as sets are. **step 20** is the iterate before step 20; **10 s** the first one
that was kept after 10 s of distilling and ranking on the hardware of its set, which looks at the clock about a hundred times:
**steps** tells before which step that was, of each seed, or that the set was finished by then.
"""

HABITS = """\
## Habits of published code (not ranked)

What published code does and this benchmark does not, asked for by protocols of its own (the choice also wherever iterates were
judged), so that the effect can be seen. The numbers below are no results: no accuracy that a habit has changed stands in a table
above, and `ddbench check` leaves them out.
"""

CHOICE = """\
**final set** is the finished set, as a ranked table shows it. **Best of test** chooses among the finished set and the iterates
by their accuracy on the test images, each seed for itself: **one iterate**, the best in the mean over all networks (backbone
included), serves every network; or **each network by itself** takes the iterate that is best on it, as in GLaD's code.
So no gain of a network by itself is below 0, and with one iterate the mean over all networks does not fall. The ± of a
gain is the standard deviation of the gain itself. Networks that have not judged every iterate are left out.
"""

DIFFERENCE = """\
The accuracy here less that of the same plan without this habit, under the protocol named in **against**, which judges alike:
the same seeds and networks. The habit touches the images of generators alone: sets made without one are the sets above.
"""
