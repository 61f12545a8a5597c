"""Measures of the town's grid, and the codes and columns of its arrays."""

PITCH = 40.0  # metres from street to street
CELL = 4.0  # metres
CELLS_PER_BLOCK = 10
CELL_OFFSET = 2.0  # metres: where cell 0 begins
LOT_CELLS = 7
LOT_EDGE = 6.0  # metres from a street's middle to the buildings
ROAD_EDGE = 4.0  # metres from a street's middle to the kerb

DISTRICTS = ("old brick", "glass towers", "pastel old town", "shops", "park")
BRICK, GLASS, PASTEL, SHOPS, PARK = range(5)
NO_BUILDING = -1
PLAZA, LAWN, PATH, WATER = range(4)  # what the ground of a lot's cell is

# columns of a building's row
(X0, Z0, X1, Z1, HEIGHT, WALL, TRIM, PANE, ACCENT) = (0, 1, 2, 3, 4, 5, 8, 11, 14)
(FLOOR, BAY, PANE_W, PANE_H, GROUND_H, SHOP, FRAME, SHUTTER, BAND, CORNICE) = range(17, 27)
(PATTERN, TONE, LIT, SHEEN, DISTRICT, GABLE) = range(27, 33)
BUILDING_COLUMNS = 33
NO_PATTERN, STRIPED, CHECKERED = range(3)
