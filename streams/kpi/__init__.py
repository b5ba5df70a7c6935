"""Live KPIs: declared, computed per source partition, added up, published with the cut that they are exact at."""
