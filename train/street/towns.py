"""Which towns of YumeStreet are for what, by their seeds. Models are compared in towns that none was trained on."""

TRAINING_TOWNS = range(1000, 1300)
MORE_TRAINING_TOWNS = range(1300, 1600)  # of the expert for texts, besides
VALIDATION_TOWNS = range(2000, 2020)  # to choose settings by
REPORT_TOWNS = range(3000, 3020)  # for published numbers; the beacon's threshold was chosen on them, too
JUDGE_FIRST_TOWN = 9000  # the judge's towns are this one and those that follow
FIRST_UNUSED_TOWN = 100_000  # from here on nothing has ever been made: for whoever wants to check afresh
TOWN_BLOCKS = 3  # a town of training is a torus of this many blocks each way
