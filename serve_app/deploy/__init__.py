"""What Ray Serve runs: typed options -> the two kinds of application and the router's replica."""
